"""Headers of GGUF files, which may come from anybody, and what llama.cpp may be given. Imports the manifest alone."""
