"""Languages: codes, tags and names of one, as people, models and files write them. Imports errors and names alone."""
