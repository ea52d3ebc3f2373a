"""What a comparison measures, and what follows from it. Imports the runtime alone and knows nothing of the report."""
