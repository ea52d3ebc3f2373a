"""What exporting every member of the family takes, and how exact it is."""
