"""Data: from the user's files to packed rows of token ids.

``sources`` reads rows, ``formats`` recognises their shape, ``contract`` says what is wrong with them, ``chat`` renders
conversations, ``tokenization`` makes ids and cuts them, ``examples`` is the whole way; ``rows`` packs and ``pipeline``
iterates.
"""
