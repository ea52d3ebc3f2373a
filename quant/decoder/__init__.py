"""The decoder in llama.cpp's types, and importance matrices measured on audio. Imports the runtime alone."""
