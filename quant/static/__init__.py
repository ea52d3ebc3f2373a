"""A bundle's graphs as tool chains for NPUs take them: fixed shapes, older operators, static int8."""
