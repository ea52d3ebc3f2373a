"""Makes bundles smaller and says what that costs. Stands on the runtime; `export` may import `quant.decoder` alone."""
