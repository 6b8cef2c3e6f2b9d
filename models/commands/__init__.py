"""The commands of the model side. Importable without torch: the command line lists them where only serving is installed."""
