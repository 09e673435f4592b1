"""A picture or film to heads, and what is written of them."""
