"""Populations before and after a change: letters, AnnData files, folders of pairs, the organoid screen, blood cells."""
