"""What is said to the user: the Pareto set verified, one member recommended, files and a report written."""
