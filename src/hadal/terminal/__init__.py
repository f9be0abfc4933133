"""What a person sees in a terminal: the live view, the chat and `hadal doctor`."""
