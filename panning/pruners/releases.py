"""How released code departs from its paper, and what ``released`` leaves out: sentences of the table of methods."""

ONE_BATCH_FOR_ALL = "all inner steps and the outer loss see one batch"
LOGIT_AS_LOSS = (
    "the loss is minus the true class's logit, without log-softmax, whatever loss is passed; one batch a round, where the "
    "release averages up to 40"
)
RUNNING_STATISTICS = (
    "BatchNorm by its running statistics, and that alone: the release also masks biases, and scores another draw of the "
    "weights than it trains"
)
CLASSIFIER_REDRAWN = (
    "not offered: the release scores a copy whose linear layers are drawn anew (Xavier-normal), here the classifier is the "
    "network's own"
)
THREE_FORMS = (
    "not offered: the code has had three forms, none of them the paper's; the last leaves layers named fc as they are and "
    "normalises images of ones by their own statistics"
)
INTEGER_PROGRAMS = (
    "not offered: the release solves integer programs, for wide layers in chunks of equal quotas, gives shortcuts and late "
    "layers other settings, and keeps up to a kernel more than was asked for"
)
BIASES_COUNT = (
    "the network as it is on images of ones, with absolute values of all parameters, so that biases count; BatchNorm by its "
    "running statistics, of which the release takes the absolute values, too"
)
CONVOLUTIONS_ALONE = (
    "not offered: the release prunes convolutions alone, after an epoch of forward passes, and with large batches squares "
    "the mean gradient in place of each sample's"
)
FROM_RANDOM_SCORES = (
    "not offered: the release starts from random scores, takes up to six times the steps, and keeps the epoch that is best "
    "on the test part"
)
