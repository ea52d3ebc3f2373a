"""From what is asked to tokens, with places for audio, and the form of the answer. Knows no llama.cpp."""
