"""The bundle as a folder: its manifest, its files, the law that counts frames and tokens. Imports no engine."""
