"""Whether what `dasheng-edge plan` foretells comes true."""
