/* BCC sizes perf buffers by it, which we do not use; ring buffers get their page size from the loader. */
#define PAGE_SHIFT 12
#define PAGE_SIZE (1UL << PAGE_SHIFT)
