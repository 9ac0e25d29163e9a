/* A hash table of 256 K entries, 8 MB. */
#include "hash.h"

int main(int argc, char **argv)
{
    return run(19, 256 << 10, work_amount(argc, argv, 30000000));
}
