"""What comes from outside: model folders of strangers, damage that nobody announced, visitors of the page."""
