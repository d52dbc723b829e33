"""The planners: shapes, operator selection, precision, memory. Each turns frozen data into frozen data."""
