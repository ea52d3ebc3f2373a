"""The decoder in llama.cpp's types, and importance matrices measured on audio: all that `export` imports of `quant`."""
