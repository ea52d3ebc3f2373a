"""What a board is given: the program of examples/cpp with all that it needs, as a tarball and as a Debian package.

Stands on examples/cpp and on the source of llama.cpp that `make llama-tools` unpacks; knows nothing of dasheng_edge.
"""
