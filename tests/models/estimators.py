"""Estimators and pipelines of scikit-learn, XGBoost and LightGBM as ONNX."""

import lightgbm
import numpy as np
import onnxmltools
import onnxmltools.convert.common.data_types as oml_types
import skl2onnx
import skl2onnx.common.data_types as types
import xgboost
from sklearn import (
    calibration, cluster, compose, cross_decomposition, datasets, decomposition,
    discriminant_analysis, ensemble, feature_extraction, feature_selection,
    gaussian_process, impute, linear_model, mixture, multiclass,
    multioutput, naive_bayes, neighbors, neural_network, pipeline, preprocessing,
    random_projection, svm, tree,
)

ROWS = 25
OPSET = {"": 17, "ai.onnx.ml": 3}

IRIS = datasets.load_iris()
CANCER = datasets.load_breast_cancer()
DIABETES = datasets.load_diabetes()
WINE = datasets.load_wine()


def cases():
    return {
        **classifiers(), **zip_mapped(), **string_labels(), **regressors(), **transformers(),
        **outliers(), **pipelines(), **boosters(),
    }


def classify(make, data=IRIS, zipmap=False, options=None, opset=OPSET):
    """A case: a classifier fitted to `data`, without ZipMap unless told."""

    def case():
        x = data.data.astype(np.float32)
        model = make().fit(x, data.target)
        settings = {id(model): {"zipmap": zipmap, **(options or {})}}
        return convert(model, x, settings, opset)

    return case


def regress(make, data=DIABETES, targets=1, positive=False):
    def case():
        x, y = data.data.astype(np.float32), data.target.astype(np.float64)
        y = y / y.max() if positive else y
        y = y if targets == 1 else np.stack([y * (i + 1) + i for i in range(targets)], 1)
        return convert(make().fit(x, y), x)

    return case


def transform(make, data=IRIS, supervised=False, holes=False, shift=0.0, opset=OPSET):
    def case():
        x = data.data.astype(np.float32) + np.float32(shift)
        if holes:
            x[::3, 0] = x[1::4, 1] = np.nan
        model = make().fit(x, data.target) if supervised else make().fit(x)
        return convert(model, x, opset=opset)

    return case


def convert(model, x, options=None, opset=OPSET):
    kinds = [("X", types.FloatTensorType([None, x.shape[1]]))]
    converted = skl2onnx.convert_sklearn(model, initial_types=kinds, options=options, target_opset=opset)
    return converted, {"X": x[:: max(1, len(x) // ROWS)][:ROWS]}


def classifiers():
    trees = dict(n_estimators=10, random_state=0)
    scaled = lambda model: pipeline.make_pipeline(preprocessing.StandardScaler(), model)
    plain = {
        "logistic_multinomial": lambda: linear_model.LogisticRegression(max_iter=500),
        "logistic_cv": lambda: linear_model.LogisticRegressionCV(Cs=3, max_iter=200),
        "ridge_classifier": linear_model.RidgeClassifier,
        "sgd_log": lambda: linear_model.SGDClassifier(loss="log_loss", random_state=0),
        "sgd_modified_huber": lambda: linear_model.SGDClassifier(loss="modified_huber", random_state=0),
        "perceptron": lambda: linear_model.Perceptron(random_state=0),
        "linear_svc": lambda: svm.LinearSVC(max_iter=5000),
        "svc_rbf": lambda: svm.SVC(),
        "svc_poly_proba": lambda: svm.SVC(kernel="poly", probability=True, random_state=0),
        "svc_linear_ovr": lambda: svm.SVC(kernel="linear"),
        "svc_sigmoid": lambda: svm.SVC(kernel="sigmoid"),
        "nu_svc": lambda: svm.NuSVC(nu=0.3, probability=True, random_state=0),
        "gaussian_nb": naive_bayes.GaussianNB,
        "multinomial_nb": naive_bayes.MultinomialNB,
        "bernoulli_nb": lambda: naive_bayes.BernoulliNB(binarize=3.0),
        "complement_nb": naive_bayes.ComplementNB,
        "knn": lambda: neighbors.KNeighborsClassifier(5),
        "knn_distance": lambda: neighbors.KNeighborsClassifier(4, weights="distance"),
        "knn_manhattan": lambda: neighbors.KNeighborsClassifier(3, metric="manhattan"),
        "mlp_relu": lambda: neural_network.MLPClassifier((16,), max_iter=300, random_state=0),
        "mlp_tanh": lambda: neural_network.MLPClassifier((8, 8), activation="tanh", max_iter=300, random_state=0),
        "decision_tree": lambda: tree.DecisionTreeClassifier(random_state=0),
        "extra_tree": lambda: tree.ExtraTreeClassifier(random_state=0),
        "random_forest": lambda: ensemble.RandomForestClassifier(**trees),
        "extra_trees": lambda: ensemble.ExtraTreesClassifier(**trees),
        "gradient_boosting": lambda: ensemble.GradientBoostingClassifier(**trees),
        "hist_gradient_boosting": lambda: ensemble.HistGradientBoostingClassifier(max_iter=10, random_state=0),
        "ada_boost": lambda: ensemble.AdaBoostClassifier(**trees),
        "bagging": lambda: ensemble.BaggingClassifier(**trees),
        "voting_soft": lambda: ensemble.VotingClassifier(
            [("a", linear_model.LogisticRegression(max_iter=500)), ("b", naive_bayes.GaussianNB())], voting="soft", flatten_transform=False),
        "voting_hard": lambda: ensemble.VotingClassifier(
            [("a", linear_model.LogisticRegression(max_iter=500)), ("b", tree.DecisionTreeClassifier(random_state=0))],
            flatten_transform=False),
        "stacking": lambda: ensemble.StackingClassifier(
            [("a", naive_bayes.GaussianNB()), ("b", tree.DecisionTreeClassifier(max_depth=2, random_state=0))],
            final_estimator=linear_model.LogisticRegression()),
        "calibrated_sigmoid": lambda: calibration.CalibratedClassifierCV(naive_bayes.GaussianNB(), cv=2),
        "calibrated_isotonic": lambda: calibration.CalibratedClassifierCV(
            naive_bayes.GaussianNB(), method="isotonic", cv=2),
        "one_vs_rest": lambda: multiclass.OneVsRestClassifier(linear_model.LogisticRegression()),
        "one_vs_one": lambda: multiclass.OneVsOneClassifier(linear_model.LogisticRegression()),
        "lda": discriminant_analysis.LinearDiscriminantAnalysis,
        "qda": discriminant_analysis.QuadraticDiscriminantAnalysis,
    }
    cases = {name: classify(make) for name, make in plain.items()}
    no_zipmap = {"ridge_classifier", "perceptron", "linear_svc", "voting_hard"}
    for name in no_zipmap & set(cases):
        cases[name] = classify_plain(plain[name])
    binary = {
        "logistic_binary": lambda: scaled(linear_model.LogisticRegression()),
        "svc_binary": lambda: scaled(svm.SVC(probability=True, random_state=0)),
        "mlp_binary": lambda: scaled(neural_network.MLPClassifier((8,), max_iter=200, random_state=0)),
        "gradient_boosting_binary": lambda: ensemble.GradientBoostingClassifier(**trees),
        "hist_gradient_boosting_binary": lambda: ensemble.HistGradientBoostingClassifier(max_iter=10, random_state=0),
        "decision_tree_binary": lambda: tree.DecisionTreeClassifier(max_depth=4, random_state=0),
        "random_forest_binary": lambda: ensemble.RandomForestClassifier(**trees),
    }
    cases |= {name: classify(make, CANCER) for name, make in binary.items()}
    for opset in (9, 11, 13, 15, 19, 21):
        target = {"": opset, "ai.onnx.ml": 1 if opset < 15 else 3}
        cases[f"logistic_opset_{opset}"] = classify(plain["logistic_multinomial"], opset=target)
        cases[f"random_forest_opset_{opset}"] = classify(plain["random_forest"], opset=target)
    return cases


def classify_plain(make):
    """A classifier whose converter takes no ZipMap option."""

    def case():
        x = IRIS.data.astype(np.float32)
        model = make().fit(x, IRIS.target)
        try:
            return convert(model, x, {id(model): {"zipmap": False}})
        except NameError:
            return convert(model, x)

    return case


def zip_mapped():
    return {
        "zipmap_logistic": classify(lambda: linear_model.LogisticRegression(max_iter=500), zipmap=True),
        "zipmap_random_forest": classify(
            lambda: ensemble.RandomForestClassifier(n_estimators=5, random_state=0), zipmap=True),
        "zipmap_columns": classify(lambda: linear_model.LogisticRegression(max_iter=500), zipmap="columns"),
        "raw_scores": classify(
            lambda: linear_model.LogisticRegression(max_iter=500), options={"raw_scores": True}),
    }


def string_labels():
    def labelled(make, zipmap):
        def case():
            x, y = IRIS.data.astype(np.float32), IRIS.target_names[IRIS.target]
            model = make().fit(x, y)
            return convert(model, x, {id(model): {"zipmap": zipmap}})

        return case

    makes = {
        "logistic": lambda: linear_model.LogisticRegression(max_iter=500),
        "random_forest": lambda: ensemble.RandomForestClassifier(n_estimators=5, random_state=0),
        "svc": lambda: svm.SVC(probability=True, random_state=0),
        "knn": lambda: neighbors.KNeighborsClassifier(3),
        "mlp": lambda: neural_network.MLPClassifier((8,), max_iter=300, random_state=0),
    }
    return {
        f"strings_{name}_{'zipmap' if zipmap else 'plain'}": labelled(make, zipmap)
        for name, make in makes.items() for zipmap in (False, True)
    }


def regressors():
    trees = dict(n_estimators=10, random_state=0)
    cases = {
        "linear": linear_model.LinearRegression,
        "ridge": linear_model.Ridge,
        "lasso": lambda: linear_model.Lasso(0.1),
        "elastic_net": lambda: linear_model.ElasticNet(0.1),
        "lars": linear_model.Lars,
        "lasso_lars": lambda: linear_model.LassoLars(0.1),
        "omp": linear_model.OrthogonalMatchingPursuit,
        "bayesian_ridge": linear_model.BayesianRidge,
        "ard": linear_model.ARDRegression,
        "huber": linear_model.HuberRegressor,
        "theil_sen": lambda: linear_model.TheilSenRegressor(random_state=0, max_iter=20),
        "ransac": lambda: linear_model.RANSACRegressor(random_state=0),
        "sgd_regressor": lambda: linear_model.SGDRegressor(random_state=0),
        "quantile": linear_model.QuantileRegressor,
        "svr": lambda: svm.SVR(C=10),
        "nu_svr": lambda: svm.NuSVR(C=10, kernel="poly"),
        "linear_svr": svm.LinearSVR,
        "knn_regressor": lambda: neighbors.KNeighborsRegressor(4),
        "radius_regressor": lambda: neighbors.RadiusNeighborsRegressor(3.0),
        "mlp_regressor": lambda: neural_network.MLPRegressor(hidden_layer_sizes=(16,), max_iter=300, random_state=0),
        "gaussian_process": lambda: gaussian_process.GaussianProcessRegressor(
            gaussian_process.kernels.RBF() + gaussian_process.kernels.WhiteKernel(), random_state=0),
        "tree_regressor": lambda: tree.DecisionTreeRegressor(random_state=0),
        "forest_regressor": lambda: ensemble.RandomForestRegressor(**trees),
        "extra_trees_regressor": lambda: ensemble.ExtraTreesRegressor(**trees),
        "gbdt_regressor": lambda: ensemble.GradientBoostingRegressor(**trees),
        "hist_gbdt_regressor": lambda: ensemble.HistGradientBoostingRegressor(max_iter=10, random_state=0),
        "ada_regressor": lambda: ensemble.AdaBoostRegressor(**trees),
        "bagging_regressor": lambda: ensemble.BaggingRegressor(**trees),
        "voting_regressor": lambda: ensemble.VotingRegressor(
            [("a", linear_model.LinearRegression()), ("b", tree.DecisionTreeRegressor(max_depth=3, random_state=0))]),
        "stacking_regressor": lambda: ensemble.StackingRegressor(
            [("a", linear_model.LinearRegression()), ("b", tree.DecisionTreeRegressor(max_depth=3, random_state=0))]),
        "pls": lambda: cross_decomposition.PLSRegression(2),
    }
    cases = {name: regress(make) for name, make in cases.items()}
    for name, make in {
        "poisson": linear_model.PoissonRegressor, "gamma": linear_model.GammaRegressor,
        "tweedie": lambda: linear_model.TweedieRegressor(power=1.5),
    }.items():
        cases[name] = regress(make, positive=True)
    cases["multi_output_linear"] = regress(linear_model.LinearRegression, targets=3)
    cases["multi_output_forest"] = regress(lambda: ensemble.RandomForestRegressor(**trees), targets=2)
    cases["multi_output_regressor"] = regress(
        lambda: multioutput.MultiOutputRegressor(linear_model.Ridge()), targets=2)
    cases["knn_multi_output"] = regress(lambda: neighbors.KNeighborsRegressor(3), targets=2)
    return cases


def transformers():
    plain = {
        "standard_scaler": preprocessing.StandardScaler,
        "min_max_scaler": lambda: preprocessing.MinMaxScaler(clip=True),
        "max_abs_scaler": preprocessing.MaxAbsScaler,
        "robust_scaler": preprocessing.RobustScaler,
        "normalizer_l1": lambda: preprocessing.Normalizer("l1"),
        "normalizer_l2": preprocessing.Normalizer,
        "normalizer_max": lambda: preprocessing.Normalizer("max"),
        "binarizer": lambda: preprocessing.Binarizer(threshold=2.5),
        "polynomial": lambda: preprocessing.PolynomialFeatures(2),
        "k_bins_onehot": lambda: preprocessing.KBinsDiscretizer(4, encode="onehot-dense"),
        "k_bins_ordinal": lambda: preprocessing.KBinsDiscretizer(4, encode="ordinal"),
        "power_yeo_johnson": preprocessing.PowerTransformer,
        "pca": lambda: decomposition.PCA(2),
        "pca_whiten": lambda: decomposition.PCA(2, whiten=True),
        "kernel_pca": lambda: decomposition.KernelPCA(2, kernel="rbf"),
        "truncated_svd": lambda: decomposition.TruncatedSVD(2, random_state=0),
        "incremental_pca": lambda: decomposition.IncrementalPCA(2),
        "random_projection": lambda: random_projection.GaussianRandomProjection(3, random_state=0),
        "k_means": lambda: cluster.KMeans(3, n_init=2, random_state=0),
        "mini_batch_k_means": lambda: cluster.MiniBatchKMeans(3, n_init=2, random_state=0),
        "gaussian_mixture": lambda: mixture.GaussianMixture(2, random_state=0),
        "bayesian_mixture": lambda: mixture.BayesianGaussianMixture(n_components=2, random_state=0),
        "variance_threshold": lambda: feature_selection.VarianceThreshold(0.3),
    }
    cases = {name: transform(make) for name, make in plain.items()}
    supervised = {
        "select_k_best": lambda: feature_selection.SelectKBest(k=2),
        "select_percentile": lambda: feature_selection.SelectPercentile(percentile=50),
        "select_fpr": feature_selection.SelectFpr,
        "rfe": lambda: feature_selection.RFE(tree.DecisionTreeClassifier(random_state=0), n_features_to_select=2),
        "select_from_model": lambda: feature_selection.SelectFromModel(
            tree.DecisionTreeClassifier(random_state=0)),
    }
    cases |= {name: transform(make, supervised=True) for name, make in supervised.items()}
    for strategy in ("mean", "median", "most_frequent"):
        cases[f"imputer_{strategy}"] = transform(
            lambda strategy=strategy: impute.SimpleImputer(strategy=strategy), holes=True)
    cases["imputer_constant"] = transform(
        lambda: impute.SimpleImputer(strategy="constant", fill_value=7.0), holes=True)
    cases["knn_imputer"] = transform(
        lambda: impute.KNNImputer(n_neighbors=2), holes=True, opset={"": 18, "ai.onnx.ml": 3})
    cases["power_box_cox"] = transform(lambda: preprocessing.PowerTransformer(method="box-cox"), shift=1.0)
    return cases


def outliers():
    return {
        "isolation_forest": transform(lambda: ensemble.IsolationForest(n_estimators=10, random_state=0)),
        "one_class_svm": transform(lambda: svm.OneClassSVM(nu=0.1)),
        "local_outlier_factor": transform(lambda: neighbors.LocalOutlierFactor(5, novelty=True)),
        "sgd_one_class": transform(lambda: linear_model.SGDOneClassSVM(random_state=0)),
    }


def pipelines():
    """Columns of several types, as tabular data comes."""
    rng = np.random.default_rng(0)
    count = 200
    age = rng.uniform(18, 80, (count, 1)).astype(np.float32)
    income = np.exp(rng.normal(10, 1, (count, 1))).astype(np.float32)
    income[::9] = np.nan
    city = rng.choice(["Berlin", "Paris", "Zürich", "Oslo"], (count, 1)).astype(object)
    plan = rng.choice(["free", "basic", "pro"], (count, 1)).astype(object)
    visits = rng.integers(0, 20, (count, 1)).astype(np.int64)
    y = ((age[:, 0] > 40) ^ (city[:, 0] == "Paris")).astype(int)
    columns = {"age": age, "income": income, "city": city, "plan": plan, "visits": visits}
    kinds = [
        ("age", types.FloatTensorType([None, 1])), ("income", types.FloatTensorType([None, 1])),
        ("city", types.StringTensorType([None, 1])), ("plan", types.StringTensorType([None, 1])),
        ("visits", types.Int64TensorType([None, 1])),
    ]

    def mixed(final, ordinal=False, zipmap=False):
        def case():
            frame = np.concatenate([value.astype(object) for value in columns.values()], axis=1)
            numbers = pipeline.make_pipeline(impute.SimpleImputer(), preprocessing.StandardScaler())
            encoder = (
                preprocessing.OrdinalEncoder() if ordinal
                else preprocessing.OneHotEncoder(handle_unknown="ignore", sparse_output=False))
            prepare = compose.ColumnTransformer([
                ("numbers", numbers, [0, 1]), ("texts", encoder, [2, 3]),
                ("counts", "passthrough", [4])])
            model = pipeline.Pipeline([("prepare", prepare), ("final", final())]).fit(frame, y)
            options = {id(model): {"zipmap": zipmap}} if hasattr(model, "predict_proba") else None
            converted = skl2onnx.convert_sklearn(model, initial_types=kinds, options=options, target_opset=OPSET)
            return converted, {key: value[:ROWS] for key, value in columns.items()}

        return case

    numeric = lambda *steps: classify(lambda: pipeline.make_pipeline(*[step() for step in steps]), WINE)
    return {
        "columns_logistic": mixed(lambda: linear_model.LogisticRegression(max_iter=1000)),
        "columns_logistic_zipmap": mixed(lambda: linear_model.LogisticRegression(max_iter=1000), zipmap=True),
        "columns_forest": mixed(lambda: ensemble.RandomForestClassifier(n_estimators=5, random_state=0)),
        "columns_ordinal_gbdt": mixed(
            lambda: ensemble.GradientBoostingClassifier(n_estimators=5, random_state=0), ordinal=True),
        "columns_mlp_regressor": mixed(lambda: neural_network.MLPRegressor(hidden_layer_sizes=(8,), max_iter=50, random_state=0)),
        "scale_pca_svc": numeric(
            preprocessing.StandardScaler, lambda: decomposition.PCA(4),
            lambda: svm.SVC(probability=True, random_state=0)),
        "poly_select_logistic": numeric(
            preprocessing.StandardScaler, lambda: preprocessing.PolynomialFeatures(2),
            lambda: feature_selection.SelectKBest(k=10), lambda: linear_model.LogisticRegression(max_iter=2000)),
        "bins_nb": numeric(
            lambda: preprocessing.KBinsDiscretizer(3, encode="onehot-dense"), naive_bayes.MultinomialNB),
        "union_knn": classify(lambda: pipeline.make_pipeline(
            pipeline.make_union(preprocessing.StandardScaler(), decomposition.PCA(2)),
            neighbors.KNeighborsClassifier(3)), WINE),
        "identity": transform(preprocessing.FunctionTransformer),
        **encoders(), **texts(), **multi_label(),
    }


def encoders():
    rng = np.random.default_rng(1)
    words = rng.choice(["red", "green", "blue", ""], (60, 2)).astype(object)
    numbers = rng.integers(0, 5, (60, 2)).astype(np.int64)

    def encode(make, data, kind):
        def case():
            model = make().fit(data)
            converted = skl2onnx.convert_sklearn(
                model, initial_types=[("X", kind([None, data.shape[1]]))], target_opset=OPSET)
            return converted, {"X": data[:ROWS]}

        return case

    def label():
        model = preprocessing.LabelEncoder().fit(words[:, 0])
        converted = skl2onnx.convert_sklearn(
            model, initial_types=[("X", types.StringTensorType([None]))], target_opset=OPSET)
        return converted, {"X": words[:ROWS, 0]}

    one_hot = lambda **kwargs: lambda: preprocessing.OneHotEncoder(sparse_output=False, **kwargs)
    return {
        "one_hot_strings": encode(one_hot(), words, types.StringTensorType),
        "one_hot_drop_first": encode(one_hot(drop="first"), words, types.StringTensorType),
        "one_hot_ints": encode(one_hot(handle_unknown="ignore"), numbers, types.Int64TensorType),
        "ordinal_strings": encode(preprocessing.OrdinalEncoder, words, types.StringTensorType),
        "ordinal_ints": encode(preprocessing.OrdinalEncoder, numbers, types.Int64TensorType),
        "label_encoder": label,
    }


def texts():
    sentences = np.array([
        "the mortise joins the tenon", "A tenon fits; a mortise holds.", "wood, glue and patience",
        "the quick brown fox", "glue holds the wood 42 times", "",
    ], dtype=object)

    def vectorize(make):
        def case():
            model = make().fit(sentences)
            converted = skl2onnx.convert_sklearn(
                model, initial_types=[("X", types.StringTensorType([None, 1]))], target_opset=OPSET,
                # onnxruntime needs the locale to be installed; this one always is.
                options={id(model): {"locale": "C"}})
            return converted, {"X": sentences.reshape(-1, 1)}

        return case

    text = feature_extraction.text
    return {
        "count_vectorizer": vectorize(text.CountVectorizer),
        "count_bigrams": vectorize(lambda: text.CountVectorizer(ngram_range=(1, 2), token_pattern="[a-zA-Z]+")),
        "tfidf": vectorize(lambda: text.TfidfVectorizer(token_pattern="[a-zA-Z0-9]+")),
        "count_binary": vectorize(lambda: text.CountVectorizer(binary=True, lowercase=False)),
    }


def multi_label():
    x, y = datasets.make_multilabel_classification(n_samples=80, n_features=6, n_classes=3, random_state=0)
    x = x.astype(np.float32)

    def fit(make):
        def case():
            model = make().fit(x, y)
            return convert(model, x, {id(model): {"zipmap": False}})

        return case

    return {
        "multi_label_forest": fit(lambda: ensemble.RandomForestClassifier(n_estimators=5, random_state=0)),
        "multi_label_knn": fit(lambda: neighbors.KNeighborsClassifier(3)),
        "multi_label_mlp": fit(lambda: neural_network.MLPClassifier((8,), max_iter=50, random_state=0)),
    }


def boosters():
    def boost(make, data, convert_model, regression=False, holes=False):
        def case():
            x = data.data.astype(np.float32)
            if holes:
                x[::5, 0] = np.nan
            y = data.target if not regression else data.target.astype(np.float32)
            model = make().fit(x, y)
            converted = convert_model(model, x)
            name = converted.graph.input[0].name
            return converted, {name: x[:: max(1, len(x) // ROWS)][:ROWS]}

        return case

    def from_xgboost(model, x):
        kinds = [("X", oml_types.FloatTensorType([None, x.shape[1]]))]
        return onnxmltools.convert_xgboost(model, initial_types=kinds, target_opset=15)

    def from_lightgbm(zipmap):
        def convert_model(model, x):
            kinds = [("X", oml_types.FloatTensorType([None, x.shape[1]]))]
            return onnxmltools.convert_lightgbm(model, initial_types=kinds, target_opset=15, zipmap=zipmap)

        return convert_model

    small = dict(n_estimators=12, max_depth=4)
    xgb, lgb = xgboost, lightgbm
    quiet = dict(n_estimators=12, verbose=-1)
    return {
        "xgb_classifier": boost(lambda: xgb.XGBClassifier(**small), IRIS, from_xgboost),
        "xgb_binary": boost(lambda: xgb.XGBClassifier(**small), CANCER, from_xgboost),
        "xgb_missing": boost(lambda: xgb.XGBClassifier(**small), CANCER, from_xgboost, holes=True),
        "xgb_regressor": boost(lambda: xgb.XGBRegressor(**small), DIABETES, from_xgboost, True),
        "xgb_forest": boost(lambda: xgb.XGBRFRegressor(**small), DIABETES, from_xgboost, True),
        "xgb_poisson": boost(
            lambda: xgb.XGBRegressor(objective="count:poisson", **small), DIABETES, from_xgboost, True),
        "lgbm_classifier": boost(lambda: lgb.LGBMClassifier(**quiet), IRIS, from_lightgbm(False)),
        "lgbm_zipmap": boost(lambda: lgb.LGBMClassifier(**quiet), IRIS, from_lightgbm(True)),
        "lgbm_binary": boost(lambda: lgb.LGBMClassifier(**quiet), CANCER, from_lightgbm(False)),
        "lgbm_missing": boost(lambda: lgb.LGBMClassifier(**quiet), CANCER, from_lightgbm(False), holes=True),
        "lgbm_regressor": boost(lambda: lgb.LGBMRegressor(**quiet), DIABETES, from_lightgbm(False), True),
        "lgbm_rf": boost(
            lambda: lgb.LGBMRegressor(boosting_type="rf", bagging_freq=1, bagging_fraction=0.7, **quiet),
            DIABETES, from_lightgbm(False), True),
        "lgbm_dart": boost(
            lambda: lgb.LGBMClassifier(boosting_type="dart", **quiet), WINE, from_lightgbm(False)),
    }
