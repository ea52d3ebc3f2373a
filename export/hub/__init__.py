"""Downloads from a model hub. The only room of the product that uses the network; needs the `pull` extra alone."""
