"""What a user asks for, joined from the readers; nothing here prints."""
