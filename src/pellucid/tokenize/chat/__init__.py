"""Chat templates: checks conversations and renders them to text, in a process of their own."""
