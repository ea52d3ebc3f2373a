"""The command line: one module for each command, and `options` for what they share.

`dasheng_edge.export.cli` and `dasheng_edge.quant.cli` bring more commands and take `options`.
Nothing else imports this.
"""
