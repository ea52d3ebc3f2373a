"""Makes bundles smaller and says what that costs."""
