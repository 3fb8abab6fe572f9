"""Images that are decoded and augmented while a network trains. Needs the extra `stream`."""
