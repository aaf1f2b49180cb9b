"""What the microscope delivered: tiles and sections as tables, and whether they are any good."""
