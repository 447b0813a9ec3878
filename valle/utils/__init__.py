"""Tools that every part of the project may use; they import nothing else of it."""
