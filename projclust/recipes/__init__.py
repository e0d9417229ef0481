"""How a table is stored: recipes, what each takes and what it leaves of the rows."""
