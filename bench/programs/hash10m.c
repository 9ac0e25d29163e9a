/* A hash table of 10 M entries, 256 MB: no cache and no TLB holds it. */
#include "hash.h"

int main(int argc, char **argv)
{
    return run(24, work_amount(argc, argv, 10000000), work_amount(argc, argv, 10000000));
}
