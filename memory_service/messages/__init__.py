"""From the contract's messages to the values that the service works with, and back.

Reading notes every fault under its field's name and raises once, with all of them:

    violations          what is wrong with a request, gathered
    fields              single fields: identifiers, texts, numbers, times
    metadata            Struct, as dictionaries
    wire_vectors        embeddings in their encodings
    page_token          where a page ended
    drafts              memories to store
    requests            filters, views and updates
    update_mask         which fields an update changes
    *_request           what a search looks for and how it ranks, conditions of filters, policies for duplicates

Replies are built from what the database layer returns:

    replies             memories, receipts, results
    explanations        how scores came about
"""
