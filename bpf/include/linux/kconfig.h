/* Included before everything else by BCC. */
#define CONFIG_BPF_SYSCALL 1
