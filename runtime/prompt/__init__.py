"""From what is asked to tokens, with places for audio: chat templates. Knows no llama.cpp and no audio file."""
