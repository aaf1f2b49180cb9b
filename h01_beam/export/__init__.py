"""What people look at: Neuroglancer states, volumes served to a browser, screenshots, colours."""
