"""What the service says of itself is true: the document, its page, and the service against it."""
