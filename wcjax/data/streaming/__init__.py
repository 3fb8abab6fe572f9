"""Decodes and augments images while a network trains. Needs the extra `stream`."""
