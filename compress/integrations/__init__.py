"""Where the libraries of others meet this one; each file needs the one that it is named after."""
