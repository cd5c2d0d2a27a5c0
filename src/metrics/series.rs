//! Families whose numbers are kept outside of the `prometheus` package.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use prometheus::{
    Registry,
    core::{Collector, Desc},
    proto,
};

use super::{
    DECLARED,
    cells::Histogram,
    families::{self, Family},
    nodes::NodeMetrics,
};

/// A family whose numbers are kept outside of the `prometheus` package.
struct Own<T> {
    of: &'static Family,
    desc: Desc,
    series: Arc<Mutex<Vec<T>>>,
}

impl<T> Own<T> {
    fn new(of: &'static Family, series: Arc<Mutex<Vec<T>>>) -> Self {
        let labels = of.labels.iter().map(|label| (*label).to_owned()).collect();
        let desc =
            Desc::new(of.name.to_owned(), of.meaning.to_owned(), labels, HashMap::new()).expect(DECLARED);
        Self { of, desc, series }
    }

    fn family(&self, kind: proto::MetricType, metrics: Vec<proto::Metric>) -> Vec<proto::MetricFamily> {
        if metrics.is_empty() {
            return Vec::new();
        }
        let mut family = proto::MetricFamily::default();
        family.set_name(self.of.name.to_owned());
        family.set_help(self.of.meaning.to_owned());
        family.set_field_type(kind);
        family.set_metric(metrics);
        vec![family]
    }

    fn labelled(&self, values: &[&str]) -> proto::Metric {
        let labels = self.of.labels.iter().zip(values).map(|(name, value)| {
            let mut label = proto::LabelPair::default();
            label.set_name((*name).to_owned());
            label.set_value((*value).to_owned());
            label
        });
        let mut metric = proto::Metric::default();
        metric.set_label(labels.collect());
        metric
    }
}

/// A histogram and its labels' values.
type HistogramSeries = (Vec<String>, Arc<Histogram>);

/// A family of histograms.
pub(super) struct Histograms(Arc<Mutex<Vec<HistogramSeries>>>);

impl Histograms {
    pub(super) fn on(registry: &Registry, of: &'static Family) -> Self {
        let series = Arc::default();
        registry.register(Box::new(Own::<HistogramSeries>::new(of, Arc::clone(&series)))).expect(DECLARED);
        Self(series)
    }

    pub(super) fn with(&self, labels: &[&str]) -> Arc<Histogram> {
        let made = Arc::<Histogram>::default();
        self.0.lock().push((labels.iter().map(|label| (*label).to_owned()).collect(), made.clone()));
        made
    }
}

impl Collector for Own<HistogramSeries> {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let series = self.series.lock();
        let metrics = series.iter().map(|(values, histogram)| {
            let values: Vec<&str> = values.iter().map(String::as_str).collect();
            let mut metric = self.labelled(&values);
            metric.set_histogram(histogram.metric());
            metric
        });
        let metrics = metrics.collect();
        self.family(proto::MetricType::HISTOGRAM, metrics)
    }
}

/// A node's counters, with its cluster's name and its own.
pub(super) type StatementSeries = (Arc<str>, Arc<str>, Arc<NodeMetrics>);

pub(super) struct Statements(pub(super) Arc<Mutex<Vec<StatementSeries>>>);

impl Statements {
    pub(super) fn on(registry: &Registry) -> Self {
        let series = Arc::default();
        let own = Own::<StatementSeries>::new(&families::STATEMENTS, Arc::clone(&series));
        registry.register(Box::new(own)).expect(DECLARED);
        Self(series)
    }
}

impl Collector for Own<StatementSeries> {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let mut metrics = Vec::new();
        for (cluster, node, counters) in self.series.lock().iter() {
            for (access, reason, count) in counters.counts().filter(|(_, _, count)| *count > 0) {
                let mut metric = self.labelled(&[cluster, node, access, reason.label()]);
                let mut counter = proto::Counter::default();
                counter.set_value(count as f64);
                metric.set_counter(counter);
                metrics.push(metric);
            }
        }
        self.family(proto::MetricType::COUNTER, metrics)
    }
}
