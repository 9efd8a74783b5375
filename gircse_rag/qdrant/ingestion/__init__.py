"""The ingest pipeline: documents in, points of a collection out, each of them once.

ingest       the pipeline: intake on one thread, embedding on the caller's, writing on a third
intake       reads, checks, looks up and cuts documents, one group ahead
checking     refuses documents that cannot be ingested, by themselves or beside earlier ones
seen         the ids, versions and contents of this run, on disk
job          one new or changed document on its way
writing      writes points in an order that a crash cannot break
sync         deletes the documents that their source no longer has
report       what an ingest did
prefetch     an iterator that works ahead on a thread of its own
ray_runner   the same by several processes or machines; ray_stream gives them their parts
"""
