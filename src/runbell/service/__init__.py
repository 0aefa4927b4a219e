"""Who serves: the Assistants API over HTTP, the runs behind it, and what is due."""
