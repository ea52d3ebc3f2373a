"""One model, many requests: they are heard, admitted and answered together. Knows every part, and no file format."""
