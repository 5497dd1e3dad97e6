"""Studies judged and shown: statements, tables, pictures, one page."""
