"""What a benchmark is, its record, and what makes pages and plots of records. Knows no benchmark."""
