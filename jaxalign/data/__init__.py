"""Data: from the user's files to packed rows of token ids.

``sources`` reads rows, ``formats`` recognises their shape (``pairs``, ``ranked`` and ``judged`` hold the forms with
several answers), ``columns`` reads what methods want beside texts, ``contract`` says what is wrong with rows;
``layouts`` makes the examples, ``key_phrases`` damages answers, ``chat`` renders conversations, ``tokenization`` makes
ids and cuts them, ``token_diff`` marks differences; ``examples`` is the whole way. ``holdout`` takes subsets, ``rows``
packs and ``pipeline`` iterates.
"""
