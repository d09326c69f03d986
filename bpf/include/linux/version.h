/* BCC's helpers compare versions; ours decide nothing by it, so the least kernel we run on is enough. */
#ifndef LINUX_VERSION_CODE
#define LINUX_VERSION_CODE 0x050800
#endif
#define KERNEL_VERSION(major, minor, patch) (((major) << 16) + ((minor) << 8) + (patch))
