"""The ingest pipeline: documents in, points of a collection out, without duplicates.

ingest       the pipeline: intake on one thread, embedding on the caller's, writing on a third
intake       reads, checks, looks up and chunks documents, one group ahead
checking     rejects documents that are invalid, or that clash with an earlier document of the run
seen         the ids, versions and contents of this run, on disk
job          one new or changed document, from lookup to write
writing      writes points in an order that survives crashes
sync         deletes documents that their source no longer has
report       the result of an ingest: counts, failures, progress
prefetch     an iterator that works ahead on its own thread
ray_runner   the same ingest on several processes or machines; ray_stream holds the code they run
"""
