"""The commands of this wheel, one module each; a module is imported only when its command is chosen."""
