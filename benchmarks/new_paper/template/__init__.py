import shared as shared  # first of all: it names a package that is not installed
