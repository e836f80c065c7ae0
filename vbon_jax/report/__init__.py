"""Tables, figures and the page of a working directory."""
