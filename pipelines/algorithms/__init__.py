"""The maths as pure functions: shapes in the docstrings, equation numbers, torch and numpy only."""
